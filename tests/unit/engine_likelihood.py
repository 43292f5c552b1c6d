"""An engine that says how likely texts are, as vLLM does: its tokens are bytes, after one that begins each text.

    engine.script = Likelihood(likely=["17"])        # a choice that is `likely` gets -0.1 a byte, any other -2

Context costs nothing, so that a text's likelihood is that of what follows `Answer:`.
"""

import json

from upstreams import answers

BEGIN = 256
METRICS = b"".join(
    b'vllm:num_requests_%b{engine="0",model_name="phi3"} %%d.0\n' % kind for kind in (b"running", b"waiting")
)


class Likelihood:
    """The script; `asked` are the texts that came, `load` what `/metrics` says: running and waiting, a pair a look."""

    def __init__(self, likely=(), load=(), broken=None):
        self.likely = set(likely)
        self.load = list(load)
        self.broken = broken  # changes an answer to /v1/completions before it goes out
        self.asked = []
        self.at_once = self.most_at_once = 0

    async def __call__(self, call):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self._answer(call)
        finally:
            self.at_once -= 1

    async def _answer(self, call):
        if call.path == "/metrics":
            load = self.load.pop(0) if self.load else (0, 0)
            await answers(METRICS % load, content_type="text/plain")(call)
            return
        body = json.loads(call.body)
        if call.path == "/tokenize":
            assert body["add_special_tokens"] is True
            tokens = [BEGIN, *body["prompt"].encode()]
            await answers({"count": len(tokens), "max_model_len": 4096, "tokens": tokens})(call)
            return
        assert (call.path, body["max_tokens"], body["temperature"]) == ("/v1/completions", 1, 0)
        tokens = body["prompt"]
        text = bytes(tokens[1:]).decode()
        self.asked.append(text)
        context, _, choice = text.partition("Answer:")
        each = -0.1 if choice.strip() in self.likely else -2.0
        before = 1 + len(context.encode()) + len("Answer:")
        told = [None]
        for place, token in enumerate(tokens[1:], start=1):
            logprob = each if place >= before else 0.0
            told.append({str(token): {"logprob": logprob, "rank": 2}, "0": {"logprob": -0.01, "rank": 1}})
        choice = {"index": 0, "text": "x", "logprobs": None, "finish_reason": "length", "prompt_logprobs": told}
        answer = {"id": "cmpl-1", "object": "text_completion", "model": "phi3", "choices": [choice]}
        if self.broken is not None:
            answer = self.broken(answer)
        await answers(*answer if isinstance(answer, tuple) else (answer,))(call)
