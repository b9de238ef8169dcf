"""The trainer. A stage is a value, a step a pure function; a resumed run repeats bit for bit."""
