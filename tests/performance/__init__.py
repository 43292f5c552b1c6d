"""`make bench`: the gateway beside its peers, in one run on one machine.

Each subject runs alone on one core, with the scripted engine (`engine.c`) and the load generator (`load.c`)
together on another; rounds are interleaved, since machines are noisy, and ratios are taken within a round.
"""
