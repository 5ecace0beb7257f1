"""What `config.toml` and the environment say: typed settings, parsed and watched."""
