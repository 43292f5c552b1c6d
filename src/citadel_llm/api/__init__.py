"""The OpenAI-compatible gateway.

`gateway` puts the application together, `routes` holds one module for each family of
endpoints, `middleware` what every request passes through, `upstream` the client for the
engines.
"""
