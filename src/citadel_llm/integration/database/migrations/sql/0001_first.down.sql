drop table llm.budgets, llm.feedback, llm.usage_rollups, llm.audit_log, llm.messages, llm.sessions, llm.api_keys,
  llm.user_roles, llm.grants, llm.roles, llm.users, llm.deployments, llm.models, llm.settings;
drop function llm.audit_drop_partitions(), llm.audit_make_partitions(integer), llm.audit_missing_partitions(integer),
  llm.audit_missing_months(integer), llm.audit_refuse_change();
