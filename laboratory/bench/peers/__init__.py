"""The servers that ours is compared with, as an experienced user of transformers would write them.

generation        transformers' processor and `generate`, for a batch of different images, prompts
                  and lengths
litserve_server   LitServe with dynamic batching
fastapi_server    FastAPI with a lock

All take a form with `image` (file), `prompt` (the exact string) and `max_new_tokens`, and answer
`{"text", "generated_tokens"}`.
"""
