"""Nous-Hermes-2 on Mistral-7B: conversation in the ChatML format."""

from citadel_llm.models import Profile

PROFILE = Profile(
    family="mistral",
    architecture="MistralForCausalLM",
    config={"max_position_embeddings": 32768, "rope_theta": 10_000.0, "sliding_window": 4096},
    bos="<s>",
    eos="<|im_end|>",
    special_tokens=("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"),
    chat_template=(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
)
