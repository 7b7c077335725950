"""Who may call, how often, and in which order: API keys, quotas, fair queue, drain gate."""
