"""Speed and memory of training: estimated (cost, budget, advice) and measured (measure, bench)."""
