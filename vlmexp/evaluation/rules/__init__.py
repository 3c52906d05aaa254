"""How benchmarks read and judge answers, each as its published evaluation does.

Where several are in use, it is lmms-eval's (https://github.com/EvolvingLMMs-Lab/lmms-eval), with whose prompts and
numbers most papers compare. A response is stripped of white space before any rule reads it.
"""
