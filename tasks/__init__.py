"""What can be learned: one folder per task. `tasks.task` says what a task is, `tasks.case` what a patient is."""
