"""One script per claim; `README.md` here is the contract they keep."""
