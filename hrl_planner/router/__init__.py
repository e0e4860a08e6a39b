"""The KV-aware SLO router: Envoy carries the tokens, an endpoint picker says from which worker."""
