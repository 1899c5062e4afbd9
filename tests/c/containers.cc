// The standard containers at work, alone and in four threads; prints sums that do not depend on the allocator.
#include <algorithm>
#include <cstdint>
#include <deque>
#include <future>
#include <iostream>
#include <list>
#include <map>
#include <memory>
#include <queue>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

using std::uint64_t;

static uint64_t mix(uint64_t h, uint64_t v) { return (h ^ v) * 0x100000001b3u; }

static uint64_t work(uint64_t seed)
{
    uint64_t h = 0xcbf29ce484222325u, x = seed * 2654435761u + 1;
    auto random = [&x] { return x = x * 6364136223846793005u + 1442695040888963407u, x >> 33; };

    std::map<std::string, std::vector<int>> words;
    for (int i = 0; i < 20000; i++) words["key " + std::to_string(random() % 3000)].push_back(i);
    for (const auto &[key, list] : words) h = mix(h, key.size() + list.size() * 31 + static_cast<uint64_t>(list.back()));

    std::unordered_map<uint64_t, std::string> table;
    for (int i = 0; i < 20000; i++) table[random() % 5000] += static_cast<char>('a' + i % 26);
    uint64_t sum = 0;
    for (const auto &[key, text] : table) sum += key * text.size() + static_cast<uint64_t>(text.back());
    h = mix(h, sum);

    std::deque<std::shared_ptr<std::string>> queue;
    for (int i = 0; i < 20000; i++) {
        queue.push_back(std::make_shared<std::string>(random() % 200, 'x'));
        if (queue.size() > 1000) h = mix(h, queue.front()->size()), queue.pop_front();
    }

    std::list<int> list;
    for (int i = 0; i < 5000; i++) list.push_front(static_cast<int>(random() % 1000));
    list.sort();
    list.unique();
    h = mix(h, list.size());

    std::set<uint64_t> set;
    std::unordered_set<uint64_t> other;
    std::priority_queue<uint64_t> heap;
    for (int i = 0; i < 10000; i++) {
        uint64_t v = random();
        set.insert(v % 7000), other.insert(v % 9000), heap.push(v);
        if (i % 3 == 0) set.erase(set.begin());
    }
    h = mix(mix(mix(h, set.size()), other.size()), heap.top());

    std::vector<std::string> lines;
    for (int i = 0; i < 10000; i++) {
        std::ostringstream line;
        line << "line " << random() % 1000 << ' ' << i;
        lines.push_back(line.str());
    }
    std::sort(lines.begin(), lines.end());
    for (const auto &line : lines) h = mix(h, std::hash<std::string>()(line));

    std::regex pattern("line (\\d+)5 .*");
    h = mix(h, static_cast<uint64_t>(std::count_if(lines.begin(), lines.begin() + 500, [&](const std::string &line) {
                return std::regex_match(line, pattern);
            })));

    std::vector<double> grows;
    for (int i = 0; i < 3000000; i++) grows.push_back(i);
    return mix(h, static_cast<uint64_t>(grows[2999999]));
}

int main()
{
    std::cout << work(1) << '\n';
    std::vector<std::future<uint64_t>> jobs;
    for (uint64_t i = 0; i < 4; i++) jobs.push_back(std::async(std::launch::async, work, i));
    for (auto &job : jobs) std::cout << job.get() << '\n';
    try {
        std::vector<char>().reserve(std::vector<char>().max_size());
    } catch (const std::exception &e) {
        std::cout << e.what() << '\n';
    }
}
