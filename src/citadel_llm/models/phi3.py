"""Phi-3-Mini-4k-Instruct: a compact model with fused projections and as many key-value heads as heads."""

from citadel_llm.models import Profile

PROFILE = Profile(
    family="phi3",
    architecture="Phi3ForCausalLM",
    config={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10_000.0,
        "sliding_window": 2047,
        "multi_head": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    bos="<s>",
    eos="<|end|>",
    special_tokens=("<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
    chat_template=(
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    ),
    add_bos=False,
)
