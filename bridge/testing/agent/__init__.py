"""A simulated Voice Agent server."""
