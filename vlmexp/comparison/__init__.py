"""Which of many runs is better, whether that is real, and why: from the files of run directories alone."""
