"""What several packages need and none owns: interfaces, exit codes, files that survive a crash, locks."""
