"""From what a user gives, prompts and parameters, to the requests that the engine core takes."""
