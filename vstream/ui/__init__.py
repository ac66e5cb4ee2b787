"""The page: what it shows (pure functions), the streams behind its browser tabs (`studio`), and its layout (`page`)."""
