"""Qdrant, asked as the role asks it: from the host, with the key that was placed there for the gateway."""

import json

import pytest

# The key comes from the file and goes nowhere else.
ASK = """
import json, sys, urllib.error, urllib.request
key = json.load(open(sys.argv[1]))["api_key"]
said = []
for method, path, body in json.loads(sys.argv[3]):
    data = None if body is None else json.dumps(body).encode()
    headers = {"api-key": key, "content-type": "application/json"}
    request = urllib.request.Request(sys.argv[2] + path, method=method, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            said.append(json.load(answer)["result"])
    except urllib.error.HTTPError as error:
        said.append({"refused": error.code, "text": error.read().decode()})
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def credentials(site):
    return f"{site['citadel_root']}/config/secrets/vector.json"


@pytest.fixture(scope="module")
def peer(host):
    """What the inventory says of Qdrant's host."""
    name = host.ansible.get_variables()["groups"]["vector_servers"][0]
    known = type(host).get_host(f"ansible://{name}", ansible_inventory=host.backend.ansible_inventory)
    return known.ansible.get_variables()


@pytest.fixture(scope="module")
def url(peer):
    return peer["citadel_vector_url"]


@pytest.fixture(scope="module")
def ask(host, site, credentials, url):
    """`ask(method, path, body)`: the result that Qdrant gives the service's user."""

    def asked(method, path, body=None):
        command = f"runuser -u {site['citadel_user']} -- python3 -c %s %s %s %s"
        said = host.run(command, ASK, credentials, url, json.dumps([[method, path, body]]))
        assert said.succeeded, said.stderr
        return json.loads(said.stdout)[0]

    return asked
