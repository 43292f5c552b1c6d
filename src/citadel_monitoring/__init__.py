"""What the site shows to its metrics server: targets, rules, dashboards, and how they get into its configuration.

All of it is made from `citadel_models` and the inventory, on the controller: nothing of this runs on a host.
"""
