//! One resource at run time.
