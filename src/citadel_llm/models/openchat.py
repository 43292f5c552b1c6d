"""OpenChat-3.5 on Mistral-7B: turns of "GPT4 Correct" speakers, each closed by an end-of-turn token."""

from citadel_llm.models import Profile

PROFILE = Profile(
    family="mistral",
    architecture="MistralForCausalLM",
    config={"max_position_embeddings": 8192, "rope_theta": 10_000.0, "sliding_window": 4096},
    bos="<s>",
    eos="<|end_of_turn|>",
    special_tokens=("<unk>", "<s>", "</s>", "<|end_of_turn|>", "<|pad_0|>"),
    chat_template=(
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '<|end_of_turn|>' }}"
        "{% else %}{{ 'GPT4 Correct ' + message['role'].title() + ': ' + message['content'] + '<|end_of_turn|>' }}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
    ),
)
