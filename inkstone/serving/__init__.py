"""The HTTP server: models behind OpenAI's interface, and the tasks they were trained for."""
