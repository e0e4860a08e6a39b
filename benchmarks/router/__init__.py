"""The router measured: decisions, throughput, streaming, peers, attainment, faults."""
