//! What normal looks like: the site's and the population's.
