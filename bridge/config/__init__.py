"""Settings from `config.toml` and secrets from the environment: typed, parsed, reloaded."""
