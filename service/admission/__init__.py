"""Which requests start, and when: API keys, quotas, the fair queue, load and drain."""
