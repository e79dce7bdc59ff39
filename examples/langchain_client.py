"""Ask a server with LangChain, and print the answer as it comes.

pip install langchain-openai
python examples/langchain_client.py picture.png "what is on the left?"
"""

import base64
import os
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

picture, question = Path(sys.argv[1]), sys.argv[2]
model = ChatOpenAI(
    base_url=os.environ.get("COMP_EXPORT_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("COMP_EXPORT_API_KEY", "none"),
    model=os.environ.get("COMP_EXPORT_MODEL", "tiny-llava-0.62"),
    max_tokens=32,
    temperature=0,
)
address = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
message = HumanMessage(
    [
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "text", "text": question},
    ]
)
for part in model.stream([message]):
    print(part.text, end="", flush=True)
print()
