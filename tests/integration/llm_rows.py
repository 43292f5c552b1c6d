"""Rows for every table of schema `llm`, by the revision that made what they need: as its release would write them.

Values are awkward on purpose: what a dump, a migration or a pooler might spoil is in them.
"""

import re

from citadel_llm.integration.database.migrate import MIGRATIONS, revisions

ANNA, BERT = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
KEY, NEXT_KEY = "10000000-0000-4000-8000-000000000001", "10000000-0000-4000-8000-000000000002"
# A tab, a newline, a backslash, a quote, COPY's own end and its null, letters of four bytes.
AWKWARD = "a\\tb\\nc\\\\d''e \\\\. \\\\N ü 漢 🏛"

# What the migrations themselves put in is not said again: settings, the built-in roles, the identities' version.
ROWS = {
    "0001": f"""
insert into llm.models (name, display_name, kind, owned_by, repository, revision, max_tokens, metadata) values
  ('mixtral', E'{AWKWARD}', 'generate', 'mistralai', 'mistralai/Mixtral-8x7B', 'main', 32768, '{{"a": ["b", null]}}'),
  ('minilm', 'MiniLM', 'embedding', 'sentence', 'sentence/minilm', 'main', 512, '{{}}');
insert into llm.deployments (model, host, port, weights_version, engine_version, release, retired_at) values
  ('mixtral', 'hx-llm-server-01', 11400, 'v1', '0.32.0', '0.1.0', now()),
  ('mixtral', 'hx-llm-server-01', 11400, 'v2', '0.32.0', '0.2.0', null);
insert into llm.users (id, name, display_name, email, password_hash, disabled_at) values
  ('{ANNA}', 'anna', E'{AWKWARD}', 'anna@example.org', '$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA', null),
  ('{BERT}', 'bert', '', null, null, 'infinity');
insert into llm.roles (name, description) values ('own', E'{AWKWARD}');
insert into llm.grants (role, permission, model) values ('own', 'chat', 'mixtral'), ('viewer', 'models.read', '*');
insert into llm.user_roles (user_id, role, granted_by) values
  ('{ANNA}', 'admin', null), ('{BERT}', 'own', '{ANNA}');
insert into llm.api_keys (id, user_id, name, prefix, digest, limits, expires_at, replaced_by) values
  ('{NEXT_KEY}', '{ANNA}', 'next', 'ck_next', decode(repeat('a1', 32), 'hex'), '{{}}', null, null),
  ('{KEY}', '{ANNA}', 'first', 'ck_first', decode(repeat('00', 32), 'hex'), '{{"rpm": 60}}', now() + interval '1 day',
   '{NEXT_KEY}');
insert into llm.sessions (id, user_id, model, title, metadata, expires_at) values
  ('conv_1', '{ANNA}', 'mixtral', E'{AWKWARD}', '{{"k": 1e30}}', now() + interval '1 day');
insert into llm.messages (session_id, position, id, role, content, model, request_id, tokens) values
  ('conv_1', 0, 'msg_0', 'user', '[{{"type": "text", "text": "a\\nb \\u00fc \\\\N"}}]', null, null, null),
  ('conv_1', 1, 'msg_1', 'assistant', '[]', 'mixtral', 'req-1', 12);
insert into llm.audit_log (at, id, chain, position, previous_digest, digest, kind, action, request_id, user_id,
    user_name, key_id, model, outcome, status, streamed, prompt_tokens, completion_tokens, first_token_ms, latency_ms,
    client_address, content_policy, content, detail)
  select now(), gen_random_uuid(), 'hx-llm-server-01:1', n, sha256(cast(n - 1 as text)::bytea),
    sha256(cast(n as text)::bytea), 'request', 'chat', 'req-' || n, '{ANNA}', 'anna', '{KEY}', 'mixtral', 'ok', 200,
    true, n, n, 0.1, 12.34567, 'fe80::1', 'full', '{{"prompt": "\\t"}}', '{{}}' from generate_series(0, 99) as n;
insert into llm.usage_rollups (period, period_start, user_id, key_id, model, requests, latency_ms_sum) values
  ('hour', date_trunc('hour', now()), '{ANNA}', '{KEY}', 'mixtral', 9007199254740993, 0.1);
insert into llm.feedback (request_id, user_id, model, rating, labels, comment) values
  ('req-1', '{ANNA}', 'mixtral', 1, array['a,b', 'c"d', E'e\\\\f', 'null', ''], E'{AWKWARD}'),
  ('req-2', null, null, -1, '{{}}', '');
insert into llm.budgets (scope, subject, period, max_requests, max_tokens) values
  ('user', '{ANNA}', 'day', 1000, null), ('everyone', '*', 'month', null, 9007199254740993);
""",
    "0002": f"""
insert into llm.users (name, origin) values ('site', 'site');
insert into llm.api_keys (user_id, name, prefix, digest, origin, models, permissions, created_by) values
  ('{ANNA}', 'narrow', 'ck_narr', decode(repeat('b2', 32), 'hex'), 'site', array['mixtral', 'a"b'], '{{}}', '{BERT}');
insert into llm.limits (scope, subject, requests_per_minute, tokens_per_minute, concurrent_requests) values
  ('key', '{KEY}', 60, null, 4), ('everyone', '*', null, 100000, null);
insert into llm.messages (session_id, position, id, role, type, content) values
  ('conv_1', 2, 'fc_2', null, 'function_call', '{{"name": "f"}}');
insert into llm.responses (id, user_id, session_id, session_position, previous_id, model, input, output, body, items,
    bytes, request_id, expires_at) values
  ('resp_1', '{ANNA}', 'conv_1', 0, null, 'mixtral', '[]', '[]', '{{"a": 1.50}}', 0, 1, 'req-1',
   now() + interval '1 day');
insert into llm.audit_log (at, id, chain, position, previous_digest, digest, kind, action, request_id, outcome,
    key_name, cached) values
  (now(), gen_random_uuid(), 'hx-llm-server-01:1', 100, sha256('99'), sha256('100'),
   'admin', 'keys.create', 'req-100', 'ok', 'first', true);
insert into llm.audit_chains (chain, position, digest) values
  ('hx-llm-server-01:1', 100, sha256('100'));
insert into llm.feedback (request_id, rating, stars) values ('req-3', null, 5);
""",
    "0003": f"""
insert into llm.files (id, user_id, filename, purpose, bytes, digest, expires_at) values
  ('file-1', '{ANNA}', E'{AWKWARD}', 'assistants', 9007199254740993, decode(repeat('c3', 32), 'hex'), null),
  ('file-2', '{BERT}', 'b.pdf', 'user_data', 0, decode(repeat('d4', 32), 'hex'), now() + interval '1 day');
insert into llm.vector_stores (id, user_id, name, description, metadata, model, expires_days, deleted_at) values
  ('vs_1', '{ANNA}', E'{AWKWARD}', '', '{{"k": "v"}}', 'minilm', 7, null),
  ('vs_2', '{BERT}', '', '', '{{}}', 'minilm', null, now());
insert into llm.vector_store_batches (id, store_id, cancelled_at) values ('vsfb_1', 'vs_1', null);
insert into llm.vector_store_files (store_id, file_id, user_id, batch_id, status, attributes, max_tokens,
    overlap_tokens, error_code, error_message, lease, lease_until) values
  ('vs_1', 'file-1', '{ANNA}', 'vsfb_1', 'failed', '{{"n": 1.50, "b": true}}', 400, 100, 'invalid_file',
   E'{AWKWARD}', null, null),
  ('vs_2', 'file-2', '{BERT}', null, 'deleting', '{{}}', 100, 0, null, null, gen_random_uuid(), now());
""",
    "0004": f"""
insert into llm.usage_rollups (period, period_start, user_id, key_id, model, requests, cost) values
  ('day', date_trunc('day', now()), '{ANNA}', '{KEY}', 'mixtral', 1, 0.000012345678901234567);
""",
}


def up_to(revision):
    """The revisions from the first to this one."""
    known = revisions()
    return known[: known.index(revision) + 1]


def rows_of(*wanted):
    """The statements that fill what these revisions have made."""
    return "\n".join(ROWS[revision] for revision in wanted)


def made_by(kind, *wanted):
    """{name} of the tables or functions that these revisions make."""
    texts = [next((MIGRATIONS / "sql").glob(f"{revision}_*.up.sql")).read_text() for revision in wanted]
    return {name for text in texts for name in re.findall(rf"^create {kind} llm\.(\w+)", text, re.MULTILINE)}
