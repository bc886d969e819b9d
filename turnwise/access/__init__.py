"""Who may do what: keys and the callers behind them."""
