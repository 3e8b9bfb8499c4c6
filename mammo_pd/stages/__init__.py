"""What each command does: reads files, writes files, can be killed and run again."""
