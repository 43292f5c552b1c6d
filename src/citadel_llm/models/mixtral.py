"""Mixtral-8x7B-Instruct: a sparse mixture of eight experts, two of them active for a token."""

from citadel_llm.models import Profile

PROFILE = Profile(
    family="mixtral",
    architecture="MixtralForCausalLM",
    config={
        "max_position_embeddings": 32768,
        "rope_theta": 1_000_000.0,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.02,
    },
    bos="<s>",
    eos="</s>",
    special_tokens=("<unk>", "<s>", "</s>"),
    chat_template=(
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
        "{% endfor %}"
    ),
)
