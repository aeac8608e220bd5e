#include "race.h"

#include <algorithm>

namespace nib_emulator
{

void Races::prepare(unsigned threads, size_t shared_bytes)
{
    threads_ = threads;
    age_++;
    step_.assign(threads, 1);
    known_.assign(threads, nullptr);
    if (words_.size() < shared_bytes / 4 + 1) words_.resize(shared_bytes / 4 + 1, Word{});
}

int Races::land(unsigned thread, const Known &known, unsigned barrier, uint32_t phase, size_t byte, size_t bytes)
{
    return visit({threads_ + barrier, thread, phase + 1, known.get(), Access::write}, byte, bytes);
}

int Races::unknown_writer(unsigned thread, size_t byte, size_t bytes) const
{
    const Actor actor = {thread, thread, step_[thread], known_[thread].get(), Access::read};
    for (size_t w = byte / 4; w <= (byte + bytes - 1) / 4; w++)
        for (const Past &past : words_[w].past)
            if (past.kind == Access::write && !before(past, actor)) return past.thread;
    return -1;
}

std::shared_ptr<Knowledge> Races::nothing() const
{
    return std::make_shared<Knowledge>(Knowledge{age_, std::vector<uint32_t>(threads_ + max_watched_barriers)});
}

void Races::learn(Knowledge &all, const Known &more) const
{
    if (more == nullptr || more->age != age_) return;
    for (size_t i = 0; i < all.step.size(); i++) all.step[i] = std::max(all.step[i], more->step[i]);
}

void Races::join(const std::vector<unsigned> &threads, const Known &besides)
{
    std::shared_ptr<Knowledge> all = nothing();
    const Knowledge *last = nullptr;
    learn(*all, besides);
    for (unsigned thread : threads) {
        if (known_[thread].get() != last) learn(*all, known_[thread]);
        last = known_[thread].get();
        all->step[thread] = step_[thread];
    }
    for (unsigned thread : threads) {
        step_[thread]++;
        known_[thread] = all;
    }
}

void Races::release(unsigned thread, Known &into)
{
    std::shared_ptr<Knowledge> all = nothing();
    learn(*all, into);
    learn(*all, known_[thread]);
    all->step[thread] = step_[thread]++;
    into = all;
}

void Races::acquire(unsigned thread, const Known &from)
{
    Known &known = known_[thread];
    if (from == nullptr || known == from) return;
    if (known != learned_old_ || from != learned_from_ || learned_ == nullptr || learned_->age != age_) {
        std::shared_ptr<Knowledge> all = nothing();
        learn(*all, known);
        learn(*all, from);
        learned_old_ = known;
        learned_from_ = from;
        learned_ = all;
    }
    known = learned_;
}

void Races::release_copies(unsigned barrier, uint32_t phase, Known &into)
{
    std::shared_ptr<Knowledge> all = nothing();
    learn(*all, into);
    all->step[threads_ + barrier] = phase + 1;
    into = all;
}

} // namespace nib_emulator
