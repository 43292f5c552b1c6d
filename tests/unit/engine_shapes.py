"""An engine that answers every forwarded endpoint as vLLM does, in its shape, and refuses what it can't read.

    engine.script = answers_in_shape

What is valid is what the gateway's document says, read as leniently as vLLM does it, and an answer has the fields that
vLLM's has, so that a document that promises other ones is found out.
"""

import json

from pydantic import ValidationError

from citadel_llm.api.routes import schemas, schemas_inference
from upstreams import CHAT, answers, streams

_USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": None}
_CHAT = {
    **CHAT,
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant", "content": "Hello.", "refusal": None, "annotations": None, "audio": None,
                "function_call": None, "tool_calls": [], "reasoning": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
            "token_ids": None,
        }
    ],
    "service_tier": None,
    "system_fingerprint": None,
    "usage": _USAGE,
    "prompt_logprobs": None,
    "kv_transfer_params": None,
}  # fmt: skip
_COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "phi3",
    "choices": [
        {"index": 0, "text": " time", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    ],
    "service_tier": None,
    "system_fingerprint": None,
    "usage": _USAGE,
    "kv_transfer_params": None,
}  # fmt: skip
_RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "phi3",
    "status": "incomplete",
    "incomplete_details": {"reason": "max_output_tokens"},
    "output": [
        {
            "id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "Hello.", "annotations": [], "logprobs": None}],
        }
    ],
    "parallel_tool_calls": True,
    "temperature": 0.7,
    "tool_choice": "auto",
    "tools": [],
    "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10, "input_tokens_details": {"cached_tokens": 0}},
}  # fmt: skip
_MESSAGE = {
    "id": "chatcmpl-1",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "Hello."}],
    "model": "phi3",
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 7, "output_tokens": 3},
}
_EMBEDDINGS = {
    "id": "embd-1",
    "object": "list",
    "created": 1,
    "model": "minilm",
    "data": [{"index": 0, "object": "embedding", "embedding": [0.25, -0.5]}],
    "usage": {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0, "prompt_tokens_details": None},
}
_TOKENS = {"count": 2, "max_model_len": 4096, "tokens": [1, 2], "token_strs": None}

_SHAPES = {
    "/v1/chat/completions": (schemas.ChatRequest, _CHAT),
    "/v1/completions": (schemas.CompletionRequest, _COMPLETION),
    "/v1/responses": (schemas_inference.ResponseRequest, _RESPONSE),
    "/v1/messages": (schemas_inference.MessageRequest, _MESSAGE),
    "/v1/messages/count_tokens": (schemas_inference.MessageCountRequest, {"input_tokens": 7}),
    "/v1/embeddings": (schemas_inference.EmbeddingsRequest, _EMBEDDINGS),
    "/tokenize": (schemas_inference.TokensRequest, _TOKENS),
    "/detokenize": (schemas_inference.TokensToTextRequest, {"prompt": "Hello."}),
}
_EVENTS = {
    "/v1/responses": (
        b'event: response.created\ndata: {"type": "response.created", "response": {"status": "in_progress"}}\n\n',
        b'event: response.completed\ndata: {"type": "response.completed", "response": {"status": "completed"}}\n\n',
    ),
    "/v1/messages": (
        b'event: message_start\ndata: {"type": "message_start", "message": {"usage": {"input_tokens": 7}}}\n\n',
        b'event: message_stop\ndata: {"type": "message_stop"}\n\n',
    ),
}


async def answers_in_shape(call):
    """Answer as the endpoint's own kind of answer; with `stream`, as its kind of stream."""
    request, answer = _SHAPES[call.path]
    try:
        wanted = request.model_validate_json(call.body)
    except ValidationError as wrong:
        await _refuses(wrong)(call)
    except (ValueError, RecursionError) as wrong:
        await _refuses(wrong)(call)
    else:
        script = streams(*_EVENTS.get(call.path, ())) if getattr(wanted, "stream", False) else answers(answer)
        await script(call)


def _refuses(wrong):
    error = {"message": str(wrong)[:2000], "type": "BadRequestError", "param": None, "code": 400}
    return answers(json.dumps({"error": error}).encode(errors="replace"), 400)
