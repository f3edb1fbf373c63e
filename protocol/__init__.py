"""The words every Serval process shares: messages, ids, lifecycle, errors, outcomes. Imports nothing of ours."""
