"""Ask a server with OpenAI's client, and print the answer as it comes.

pip install openai
python examples/openai_client.py picture.png "what is on the left?"
"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

picture, question = Path(sys.argv[1]), sys.argv[2]
client = OpenAI(
    base_url=os.environ.get("COMP_EXPORT_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("COMP_EXPORT_API_KEY", "none"),
)
stream = client.chat.completions.create(
    model=os.environ.get("COMP_EXPORT_MODEL", "tiny-llava-0.62"),
    messages=[
        {
            "role": "user",
            "content": [
                {
                    "type": "image_url",
                    "image_url": {
                        "url": "data:image/png;base64,"
                        + base64.b64encode(picture.read_bytes()).decode()
                    },
                },
                {"type": "text", "text": question},
            ],
        }
    ],
    max_tokens=32,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if not chunk.choices:  # the last one
        print()
        kept = chunk.model_extra["comp_export"]["image_tokens_kept"]
        for place in kept:
            print(f"after {place['place']}: {place['kept']} image tokens kept", file=sys.stderr)
