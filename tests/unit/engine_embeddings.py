"""An engine that makes vectors as an embedding model does: deterministic, alike for texts that share words.

    engine.script = Embeds()

And a tokenizer for it, which takes each word for a token: `write_tokenizer(path)`.
"""

import base64
import hashlib
import json
import math
import re
from array import array

from tokenizers import Tokenizer, models, pre_tokenizers

from upstreams import answers

SIZE = 384


def vector_of(text):
    """The sum of a random direction for each of its words, of length 1."""
    sums = [0.0] * SIZE
    for word in re.findall(r"\w+", text.lower()) or [""]:
        seed = hashlib.sha256(word.encode()).digest()
        for n in range(24):  # a sparse direction is quicker, and as good
            at = int.from_bytes(hashlib.blake2s(seed + bytes([n]), digest_size=4).digest(), "big")
            sums[at % SIZE] += 1.0 if at & 0x8000_0000 else -1.0
    length = math.sqrt(sum(number * number for number in sums)) or 1.0
    return [number / length for number in sums]


class Embeds:
    """The script. `texts` are all that were asked for; `pause` is awaited before each answer."""

    def __init__(self, pause=None, most_words=254):
        self.texts = []
        self.pause = pause
        self.most_words = most_words

    async def __call__(self, call):
        request = json.loads(call.body)
        given = request["input"] if isinstance(request["input"], list) else [request["input"]]
        self.texts += given
        if self.pause is not None:
            await self.pause()
        if request.get("truncate_prompt_tokens") is None and any(len(text.split()) > self.most_words for text in given):
            await answers({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}, 400)(call)
            return
        as_text = request.get("encoding_format") == "base64"
        data = []
        for index, text in enumerate(given):
            vector = vector_of(text)
            told = base64.b64encode(array("f", vector).tobytes()).decode() if as_text else vector
            data.append({"object": "embedding", "index": index, "embedding": told})
        tokens = sum(len(text.split()) for text in given)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        await answers({"object": "list", "model": request["model"], "data": data, "usage": usage})(call)


def write_tokenizer(path):
    """A tokenizer.json in which each word, and each other sign, is one token."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(path))
    return str(path)
