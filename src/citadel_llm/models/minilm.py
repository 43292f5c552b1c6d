"""all-MiniLM-L6-v2: a small BERT encoder, whose vectors are means over a text's tokens, of length one."""

from citadel_llm.models import EmbeddingProfile

PROFILE = EmbeddingProfile(
    family="bert",
    architecture="BertModel",
    dimensions=384,
    context=256,  # its positions go to 512, but it was trained on texts of this length, and the engine holds to that
)
