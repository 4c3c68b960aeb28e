"""Pipeline parallelism: stages, schedules, sends."""
