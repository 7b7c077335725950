"""Which requests start, and when: API keys and their quotas, the fair queue of a model, the load
and its drain.
"""
