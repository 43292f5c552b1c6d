"""The metrics server, as the tests of this role see it."""

import json

import pytest


@pytest.fixture(scope="module")
def peer(host, site):
    """The metrics server itself, as a host of testinfra."""
    name = site.get("monitoring_server") or site["groups"]["metrics_servers"][0]
    return type(host).get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_inventory)


@pytest.fixture(scope="module")
def peer_site(peer):
    """Its variables in the inventory."""
    return peer.ansible.get_variables()


@pytest.fixture(scope="module")
def ask(peer, peer_site):
    """`ask(service, path)`: what a service of the metrics server answers, asked there; `prometheus`, `alertmanager`."""

    def asked(service, path):
        url = f"http://{peer_site['ansible_host']}:{peer_site[f'citadel_{service}_port']}{path}"
        said = peer.run("curl -fsS -m 20 %s", url)
        assert said.succeeded, said.stderr
        return json.loads(said.stdout)

    return asked
