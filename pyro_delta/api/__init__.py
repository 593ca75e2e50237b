"""What Python and the command line call: train, resume, check, evaluate, diagnose, verify."""
