alter table llm.usage_rollups drop column cost;
