"""all-MiniLM-L6-v2: a small BERT encoder, whose vectors are means over a text's tokens, of length one."""

from citadel_llm.models import EmbeddingProfile

PROFILE = EmbeddingProfile(
    family="bert",
    architecture="BertModel",
    config={"max_position_embeddings": 512},
    dimensions=384,
)
