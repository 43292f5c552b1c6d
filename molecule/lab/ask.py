"""Asks every model of the lab's gateway for a chat completion, the first one streamed, or for embeddings, and says
what is where."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path

import openai

QUESTION = [{"role": "user", "content": "What is a citadel?"}]


def likeness(client: openai.OpenAI, model: str) -> str:
    """How near the vectors of three sentences are, as text."""
    texts = ["A man is eating food.", "Somebody has lunch.", "A cheetah is running behind its prey."]
    first, second, third = (entry.embedding for entry in client.embeddings.create(model=model, input=texts).data)
    near, far = math.sumprod(first, second), math.sumprod(first, third)
    return f"{texts[0]!r} is {near:.2f} like {texts[1]!r} and {far:.2f} like {texts[2]!r}"


def main() -> int:
    credentials = json.loads((Path(os.environ["LAB_DIR"]) / "credentials.json").read_text())
    url = credentials["gateway_url"]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=credentials["admin_key"], timeout=60)
    kinds = {model.id: getattr(model, "kind", "generate") for model in client.models.list()}
    models = sorted(kinds, key=lambda name: (kinds[name] != "generate", name))
    for number, model in enumerate(models):
        began = time.monotonic()
        if kinds[model] == "embedding":
            print(f"{model}: {likeness(client, model)}")
        elif number == 0:
            print(f"{model} (streamed): ", end="", flush=True)
            for chunk in client.chat.completions.create(model=model, messages=QUESTION, max_tokens=24, stream=True):
                if chunk.choices:
                    print(chunk.choices[0].delta.content or "", end="", flush=True)
            print()
        else:
            answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=16)
            print(f"{model}: {answer.choices[0].message.content!r}")
        print(f"    answered in {(time.monotonic() - began) * 1000:.0f} ms", flush=True)
    print(f"""
The words are random: the lab's weights are tiny and untrained, of the true architectures. Embeddings are the true ones.

  gateway      {url}/v1        (documentation: {url}/docs)
  health       {url}/health
  metrics      {url}/metrics
  models       http://{url.split("/")[2].split(":")[0]}:11400 … 11404 (vLLM itself)
  keys         {os.path.relpath(os.environ["LAB_DIR"])}/credentials.json

The hosts live in a network of their own; go there with bin/lab run:
  bin/lab run curl -s {url}/v1/models
  bin/lab exec hx-llm-server-01 systemctl status citadel.target
  bin/lab run ansible-playbook playbooks/site.yml -i inventory/lab.yml --tags gateway
  make conformance            # is the host what the requirements promise?
  bin/lab down                # stop everything""")
    return 0 if models else 1


if __name__ == "__main__":
    sys.exit(main())
