"""The tensors of a generating model: what a request has, and what its responses have.

Names are those of Triton's "generate" extension and its vLLM backend where these have one.
"""

from serve.triton.config import ANY, TensorConfig

ONE, MANY = (1,), (ANY,)
TEXT, IMAGE, STREAM = "text_input", "image", "stream"
TEXT_OUTPUT, TOKEN_IDS, FINISH_REASON = "text_output", "token_ids", "finish_reason"
INPUT_TOKENS, OUTPUT_TOKENS = "num_input_tokens", "num_output_tokens"
TOKENS_KEPT = "image_tokens_kept"

INPUTS = (
    TensorConfig(TEXT, "TYPE_STRING", ONE),
    TensorConfig(IMAGE, "TYPE_STRING", MANY, optional=True),
    TensorConfig(STREAM, "TYPE_BOOL", ONE, optional=True),
    TensorConfig("max_tokens", "TYPE_INT32", ONE, optional=True),
    TensorConfig("temperature", "TYPE_FP32", ONE, optional=True),
    TensorConfig("top_p", "TYPE_FP32", ONE, optional=True),
    TensorConfig("seed", "TYPE_UINT64", ONE, optional=True),
    TensorConfig("stop", "TYPE_STRING", MANY, optional=True),
    TensorConfig("keep_factor", "TYPE_FP32", ONE, optional=True),
)
OUTPUTS = (
    TensorConfig(TEXT_OUTPUT, "TYPE_STRING", ONE),
    TensorConfig(TOKEN_IDS, "TYPE_INT64", MANY),
    TensorConfig(FINISH_REASON, "TYPE_STRING", ONE),
    TensorConfig(INPUT_TOKENS, "TYPE_INT32", ONE),
    TensorConfig(OUTPUT_TOKENS, "TYPE_INT32", ONE),
    TensorConfig(TOKENS_KEPT, "TYPE_INT32", MANY),
)
