"""OpenAI's Files and Batches: requests in a file, answered in the gaps of online traffic, into
another file.
"""
