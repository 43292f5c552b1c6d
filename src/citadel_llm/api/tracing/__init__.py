"""Traces: a caller's context goes on to the engine, and what the gateway did to a collector, if there is one."""
