"""The way to the engines: a keep-alive HTTP/1.1 client, its pools, and what is known of each engine."""
