#!/usr/bin/env bash
# Ask a service that `hycir serve` runs:
#
#     examples/service/curl.sh IMAGE "make it night"
#
# HYCIR_URL is the service's address, HYCIR_API_KEY its key.
set -euo pipefail
url="${HYCIR_URL:-http://127.0.0.1:8000}"
ask() { curl --silent --show-error --fail-with-body -H "Authorization: Bearer ${HYCIR_API_KEY:-none}" "$@"; echo; }

ask "$url/health"
ask "$url/search" -F "image=@$1" --form-string "text=$2" -F k=3                            # a file
ask "$url/search" --json '{"text": "red", "without": "people", "k": 3}'                    # text alone
ask "$url/v1/embeddings" --json '{"model": "hycir", "input": ["red"]}'  # as with OpenAI
