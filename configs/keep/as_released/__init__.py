"""The recipes that the released training code follows, where it differs from the paper."""
