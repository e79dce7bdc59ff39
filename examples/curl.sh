#!/usr/bin/env bash
# Ask a server with curl; the answer is one JSON object.
#
#   bash examples/curl.sh picture.png "what is on the left?"
set -euo pipefail

picture=$1
question=${2//\\/\\\\}
question=${question//\"/\\\"}
url=${COMP_EXPORT_URL:-http://127.0.0.1:8000/v1}

{
  printf '{"model": "%s", "max_tokens": 32, "temperature": 0, ' "${COMP_EXPORT_MODEL:-tiny-llava-0.62}"
  printf '"messages": [{"role": "user", "content": [{"type": "text", "text": "%s"}, ' "$question"
  printf '{"type": "image_url", "image_url": {"url": "data:image/png;base64,'
  base64 < "$picture" | tr -d '\n'
  printf '"}}]}]}'
} | curl --silent --show-error --fail-with-body "$url/chat/completions" \
  --header "Authorization: Bearer ${COMP_EXPORT_API_KEY:-none}" \
  --header "Content-Type: application/json" \
  --data-binary @-
