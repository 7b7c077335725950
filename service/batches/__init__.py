"""OpenAI's Files and Batches: a file of requests, answered in the gaps of online traffic."""
